"""Images, masks, clips: where they lie, how they are read, in which order and form they reach the network."""
