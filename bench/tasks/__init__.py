"""Speed of drawing tasks and of the estimators that learners are compared with."""
