"""From rows of sensitive values to losses, metrics and answers."""
