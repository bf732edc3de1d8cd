"""Pictures that a request starts from: from untrusted bytes to what is drawn over."""
