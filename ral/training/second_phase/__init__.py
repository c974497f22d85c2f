"""Second phase on stored features: methods that refit the linear classifier."""
