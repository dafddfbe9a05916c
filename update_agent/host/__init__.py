"""What is done: one module for each thing outside this process. Knows ``core``, decides nothing."""
