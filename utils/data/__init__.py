"""Images, from where they are to batches of them."""
