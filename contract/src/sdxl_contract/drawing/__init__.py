"""Parts of a request that say how it is drawn, each with its ranges."""
