"""Bytes from elsewhere: guarded, bounded and hashed downloads, and LoRAs made from them."""
