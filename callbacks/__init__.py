"""Lightning callbacks: progress, checkpoint files, samples at validation."""
