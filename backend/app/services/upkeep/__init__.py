"""What is done now and then, whoever asks: chores, retention, sweeps, figures."""
