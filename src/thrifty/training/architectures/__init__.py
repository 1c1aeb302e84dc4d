"""Methods that give a trained model another architecture."""
