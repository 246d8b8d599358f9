"""Buckets and other stores by URL: requests, patience with a server, errors in words."""
