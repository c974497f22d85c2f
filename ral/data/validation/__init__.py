"""What is checked before anything is prepared: expectations on rows and images, drift, Data Docs."""
