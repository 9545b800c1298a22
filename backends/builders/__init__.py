"""Programs that make images of recipes. Each is one file; what they must do is `contract`, and one suite tests all."""
