"""Networks beside the model, from files that the operator provides."""
