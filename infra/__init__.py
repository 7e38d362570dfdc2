"""What Timers is deployed with: the template of what Chalice does not make, and the commands."""
