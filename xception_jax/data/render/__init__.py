"""From the encoded bytes of an image to uint8 pixels, on the host."""
