"""Gives MLflow's accounts the passwords of the Secrets: the administrator, and the user of pipelines.

It makes the tables of users and what accounts are missing. A second run changes nothing.
"""

from __future__ import annotations

import os

from mlflow.server.auth import auth_config, bootstrap_admin_user, store

bootstrap_admin_user()  # with its tables, which it makes or migrates
accounts = {
    os.environ["MLFLOW_TRACKING_USERNAME"]: os.environ["MLFLOW_TRACKING_PASSWORD"],
    auth_config.admin_username: auth_config.admin_password,
}
for name, password in accounts.items():
    if not store.has_user(name):
        store.create_user(name, password)
    elif not store.authenticate_user(name, password):
        store.update_user(name, password=password)
