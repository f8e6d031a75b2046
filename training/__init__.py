"""Parts of a training that trainer_base.py puts together."""
