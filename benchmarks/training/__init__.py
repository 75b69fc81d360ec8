"""What is trained by learning.py, precision.py and agents.py: a function per kind of agent."""
