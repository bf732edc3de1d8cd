"""Files of strangers, looked at in processes of their own."""
