"""How the API describes itself: its document and the pages made of it."""
