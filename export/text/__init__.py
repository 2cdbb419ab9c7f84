"""What a head for text is learned in, made from generic text."""
