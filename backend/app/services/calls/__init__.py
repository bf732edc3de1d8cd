"""What calls of other services' APIs need beside a content: their echo, LoRAs by URL."""
