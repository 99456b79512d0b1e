"""Creates a template's stack in a moto server and prints as JSON what became of it: create.py TEMPLATE ENDPOINT PARAMETERS.

What moto does not know is taken out first; the list is printed too, and the test compares it with its own.
"""

import ast
import json
import sys

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

# Types of resources that moto 5.2 does not create.
LACKING = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::CloudWatch::Alarm",
    "AWS::EC2::SecurityGroup",
    "AWS::ECS::CapacityProvider",
    "AWS::ECS::ClusterCapacityProviderAssociations",
    "AWS::IAM::RolePolicy",
    "AWS::Lambda::CapacityProvider",
    "AWS::Lambda::Url",
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
}
TEMPLATE, ENDPOINT, PARAMETERS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def client(service):
    return boto3.client(
        service, endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )


def transformed():
    with open(TEMPLATE, encoding="utf-8") as file:
        template = yaml_parse(file.read())
    if "Transform" not in template:
        return template
    session = boto3.Session(region_name="us-east-1")
    return Translator({}, Parser(), boto_session=session).translate(template, dict(PARAMETERS))


def without_what_moto_lacks(template):
    lacking = sorted(name for name, resource in template["Resources"].items() if resource["Type"] in LACKING)
    for name in lacking:
        kind = template["Resources"].pop(name)["Type"]
        # What it was called is all that others ask of it.
        replace(template, name, f"arn:aws:removed:{kind}:{name}")
    return lacking


def replace(tree, name, value):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in list(items):
        if child == {"Ref": name} or (isinstance(child, dict) and list(child) == ["Fn::GetAtt"] and child["Fn::GetAtt"][0] == name):
            tree[key] = value
        elif child == name and key == "DependsOn":
            del tree[key]
        elif isinstance(child, str) and key == "Fn::Sub":
            tree[key] = child.replace("${" + name + "}", value)
        else:
            replace(child, name, value)


def statements(document):
    # moto gives the document of a role's own policy as Python would print it.
    return (ast.literal_eval(document) if isinstance(document, str) else document)["Statement"]


# moto brings a network of its own.
ec2 = client("ec2")
network = ec2.describe_subnets()["Subnets"][0]
PARAMETERS["SubnetIds"] = network["SubnetId"]
if "VpcId" in PARAMETERS:
    PARAMETERS["VpcId"] = network["VpcId"]
template = transformed()
template = json.loads(json.dumps(template))
whole = json.loads(json.dumps(template))
lacking = without_what_moto_lacks(template)
cloudformation = client("cloudformation")
cloudformation.create_stack(
    StackName="atelier",
    TemplateBody=json.dumps(template),
    Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in PARAMETERS.items()],
    Capabilities=["CAPABILITY_IAM"],
)
resources = {
    row["LogicalResourceId"]: row["PhysicalResourceId"]
    for row in cloudformation.describe_stack_resources(StackName="atelier")["StackResources"]
}
stack = cloudformation.describe_stacks(StackName="atelier")["Stacks"][0]

sqs = client("sqs")
queues = {
    name: sqs.get_queue_attributes(QueueUrl=resources[name], AttributeNames=["All"])["Attributes"] for name in ("Jobs", "DeadJobs")
}
s3 = client("s3")
bucket = resources["Results"]
iam = client("iam")
roles = {}
for name, physical in resources.items():
    if template["Resources"][name]["Type"] == "AWS::IAM::Role":
        roles[name] = {
            policy: statements(iam.get_role_policy(RoleName=physical, PolicyName=policy)["PolicyDocument"])
            for policy in iam.list_role_policies(RoleName=physical)["PolicyNames"]
        }
answer = {
    "status": stack["StackStatus"],
    "template": whole,
    "lacking": lacking,
    "created": sorted(template["Resources"]) == sorted(resources),
    "outputs": {row["OutputKey"]: row["OutputValue"] for row in stack.get("Outputs", [])},
    "resources": resources,
    "queues": queues,
    "bucket": {
        "encryption": s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"],
    },
    "roles": roles,
}
if "Function" in resources:
    aws_lambda = client("lambda")
    answer["function"] = aws_lambda.get_function_configuration(FunctionName=resources["Function"])
    answer["mappings"] = aws_lambda.list_event_source_mappings()["EventSourceMappings"]
json.dump(answer, sys.stdout, default=str)
