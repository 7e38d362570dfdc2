"""Deploys Timers: the CloudFormation template, the Lambda bundle, and the steps of a deployment."""
