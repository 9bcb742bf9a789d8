"""Online CMD within the training loops of other libraries, which are imported only by the modules
that are named after them."""
