"""gunicorn reads this file by itself, in the folder that it is started in."""

bind = "127.0.0.1:8000"
workers = 4
threads = 16
max_requests = 10_000
control_socket_disable = True
