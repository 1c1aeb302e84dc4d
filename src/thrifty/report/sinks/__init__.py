"""Where trials and training curves are logged beside the store: MLflow, TensorBoard, trackio, Weights & Biases, all offline."""
