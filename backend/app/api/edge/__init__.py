"""What happens to every call before its route and after: plain ASGI, in the order of arrival."""
