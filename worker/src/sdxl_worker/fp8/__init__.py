"""The UNet's large linear layers in 8 bit: a copy of their weights that follows the first one."""
