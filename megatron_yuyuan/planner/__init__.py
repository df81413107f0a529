"""What a job will take before it is started: memory, time and traffic of a layout, on a laptop."""
