"""Where imports come from: web servers, S3 services, the Hugging Face hub. One file each; `registry` picks."""
