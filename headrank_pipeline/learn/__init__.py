"""Learning in attention space: graded lists, head selection, preference alignment and the small loop around them."""
