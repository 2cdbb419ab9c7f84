"""Ways to tune that `bench quality` compares on tasks, and their parts in float32."""
