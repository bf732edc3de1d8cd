"""What tests of several rooms share: servers, files, doubles."""
