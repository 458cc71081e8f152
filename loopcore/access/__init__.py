"""What a callback may touch: guarded views of the learner, by what the callback declares."""
