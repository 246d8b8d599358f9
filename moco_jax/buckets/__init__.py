"""Buckets of S3 and Google Cloud Storage: requests, patience with a server, errors in words."""
