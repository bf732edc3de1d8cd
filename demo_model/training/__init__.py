"""Makes what lies in `demo_model/`: the dataset, and one program for each thing that is trained."""
