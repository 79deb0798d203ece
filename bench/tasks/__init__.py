"""Speed of drawing tasks and of baseline estimators."""
