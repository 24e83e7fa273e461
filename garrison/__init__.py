"""The process around Garrison's three domains (authz, ratelimit, ca), and the leaves that they share."""
