"""Who may call: the page's login, and keys that keys make."""
