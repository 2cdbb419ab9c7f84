"""Ways to learn how a person writes, that `bench senders` compares, and the messages."""
