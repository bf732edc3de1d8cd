"""From a prompt to pictures, on the model as it stands."""
