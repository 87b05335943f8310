"""The shapes of the kinds that the server has built in.

Sources: the API reference of Kubernetes 1.32; list types from the `listType` and `patchMergeKey` of its OpenAPI
document. What the lab, kubectl and the agent rely on is spelled out; the rest of a Pod, Node or Deployment is open.
"""

from netagent.lab.apiserver.schema import Dict, List, Obj

STRINGS = List("string")

OWNER = Obj(
    {
        "apiVersion": "string",
        "kind": "string",
        "name": "string",
        "uid": "string",
        "controller": "boolean",
        "blockOwnerDeletion": "boolean",
    }
)
METADATA = Obj(
    {
        "name": "string",
        "generateName": "string",
        "namespace": "string",
        "selfLink": "string",
        "uid": "string",
        "resourceVersion": "string",
        "generation": "integer",
        "creationTimestamp": "string",
        "deletionTimestamp": "string",
        "deletionGracePeriodSeconds": "integer",
        "labels": Dict(),
        "annotations": Dict(),
        "ownerReferences": List(OWNER, keys=("uid",)),
        "finalizers": List("string", set=True),
        "managedFields": List("any"),
    }
)

SELECTOR = Obj(
    {
        "matchLabels": Dict(),
        "matchExpressions": List(Obj({"key": "string", "operator": "string", "values": STRINGS})),
    },
    atomic=True,
)
POLICY_PEER = Obj(
    {
        "podSelector": SELECTOR,
        "namespaceSelector": SELECTOR,
        "ipBlock": Obj({"cidr": "string", "except": STRINGS}),
    }
)
POLICY_PORT = Obj({"protocol": "string", "port": "int-or-string", "endPort": "integer"})
NETWORK_POLICY = Obj(
    {
        "spec": Obj(
            {
                "podSelector": SELECTOR,
                "policyTypes": STRINGS,
                "ingress": List(Obj({"from": List(POLICY_PEER), "ports": List(POLICY_PORT)})),
                "egress": List(Obj({"to": List(POLICY_PEER), "ports": List(POLICY_PORT)})),
            }
        ),
        "status": Obj(open=True),
    }
)

CONDITIONS = List(
    Obj({"type": "string", "status": "string", "reason": "string", "message": "string"}, open=True), ("type",)
)
PORT = Obj(
    {"name": "string", "hostPort": "integer", "containerPort": "integer", "protocol": "string", "hostIP": "string"}
)
PROBE = Obj(open=True)
CONTAINER = Obj(
    {
        "name": "string",
        "image": "string",
        "command": STRINGS,
        "args": STRINGS,
        "workingDir": "string",
        "imagePullPolicy": "string",
        "restartPolicy": "string",
        "ports": List(PORT, ("containerPort", "protocol")),
        "env": List(Obj({"name": "string", "value": "string"}, open=True), ("name",)),
        "envFrom": List(Obj(open=True)),
        "volumeMounts": List(Obj({"name": "string", "mountPath": "string"}, open=True), ("mountPath",)),
        "resources": Obj({"limits": Dict("quantity"), "requests": Dict("quantity")}, open=True),
        "livenessProbe": PROBE,
        "readinessProbe": PROBE,
        "startupProbe": PROBE,
        "securityContext": Obj(open=True),
        "stdin": "boolean",
        "tty": "boolean",
    },
    open=True,
)
POD_SPEC = Obj(
    {
        "containers": List(CONTAINER, ("name",)),
        "initContainers": List(CONTAINER, ("name",)),
        "ephemeralContainers": List(CONTAINER, ("name",)),
        "volumes": List(Obj({"name": "string"}, open=True), ("name",)),
        "imagePullSecrets": List(Obj({"name": "string"}), ("name",)),
        "hostAliases": List(Obj({"ip": "string", "hostnames": STRINGS}), ("ip",)),
        "tolerations": List(Obj(open=True)),
        "nodeName": "string",
        "nodeSelector": Dict(),
        "hostNetwork": "boolean",
        "hostPID": "boolean",
        "hostIPC": "boolean",
        "restartPolicy": "string",
        "dnsPolicy": "string",
        "schedulerName": "string",
        "serviceAccountName": "string",
        "serviceAccount": "string",
        "subdomain": "string",
        "hostname": "string",
        "priority": "integer",
        "priorityClassName": "string",
        "terminationGracePeriodSeconds": "integer",
        "activeDeadlineSeconds": "integer",
        "automountServiceAccountToken": "boolean",
        "enableServiceLinks": "boolean",
        "securityContext": Obj(open=True),
        "affinity": Obj(open=True),
    },
    open=True,
)
POD = Obj(
    {
        "spec": POD_SPEC,
        "status": Obj(
            {
                "phase": "string",
                "conditions": CONDITIONS,
                "message": "string",
                "reason": "string",
                "nominatedNodeName": "string",
                "hostIP": "string",
                "hostIPs": List(Obj({"ip": "string"})),
                "podIP": "string",
                "podIPs": List(Obj({"ip": "string"}), ("ip",)),
                "startTime": "string",
                "qosClass": "string",
                "containerStatuses": List(Obj(open=True)),
                "initContainerStatuses": List(Obj(open=True)),
            },
            open=True,
        ),
    }
)
NODE = Obj(
    {
        "spec": Obj(
            {
                "podCIDR": "string",
                "podCIDRs": List("string", set=True),
                "providerID": "string",
                "unschedulable": "boolean",
                "taints": List(Obj({"key": "string", "value": "string", "effect": "string", "timeAdded": "string"})),
            },
            open=True,
        ),
        "status": Obj(
            {
                "capacity": Dict("quantity"),
                "allocatable": Dict("quantity"),
                "conditions": CONDITIONS,
                "addresses": List(Obj({"type": "string", "address": "string"}), ("type", "address")),
                "nodeInfo": Obj(open=True),
            },
            open=True,
        ),
    }
)
NAMESPACE = Obj(
    {
        "spec": Obj({"finalizers": STRINGS}),
        "status": Obj({"phase": "string", "conditions": CONDITIONS}),
    }
)
LEASE = Obj(
    {
        "spec": Obj(
            {
                "holderIdentity": "string",
                "leaseDurationSeconds": "integer",
                "acquireTime": "string",
                "renewTime": "string",
                "leaseTransitions": "integer",
                "strategy": "string",
                "preferredHolder": "string",
            }
        )
    }
)
SERVICE = Obj(
    {
        "spec": Obj(
            {
                "ports": List(
                    Obj(
                        {
                            "name": "string",
                            "port": "integer",
                            "targetPort": "int-or-string",
                            "protocol": "string",
                            "nodePort": "integer",
                            "appProtocol": "string",
                        }
                    ),
                    ("port", "protocol"),
                ),
                "selector": Dict(),
                "clusterIP": "string",
                "clusterIPs": STRINGS,
                "type": "string",
                "externalIPs": STRINGS,
            },
            open=True,
        ),
        "status": Obj(open=True),
    }
)
CONFIG_MAP = Obj({"data": Dict(), "binaryData": Dict(), "immutable": "boolean"})
SECRET = Obj({"data": Dict(), "stringData": Dict(), "type": "string", "immutable": "boolean"})
EVENT = Obj(
    {
        "involvedObject": Obj(open=True),
        "reason": "string",
        "message": "string",
        "type": "string",
        "count": "integer",
        "source": Obj({"component": "string", "host": "string"}),
        "firstTimestamp": "string",
        "lastTimestamp": "string",
    },
    open=True,
)
OPEN = Obj({"spec": Obj(open=True), "status": Obj(open=True)}, open=True)
DEFINITION = Obj(
    {
        "spec": Obj(
            {
                "group": "string",
                "scope": "string",
                "names": Obj(
                    {
                        "plural": "string",
                        "singular": "string",
                        "kind": "string",
                        "listKind": "string",
                        "shortNames": STRINGS,
                        "categories": STRINGS,
                    }
                ),
                "versions": List(
                    Obj(
                        {
                            "name": "string",
                            "served": "boolean",
                            "storage": "boolean",
                            "schema": Obj({"openAPIV3Schema": Obj(open=True)}),
                            "subresources": Obj({"status": Obj(open=True)}, open=True),
                            "additionalPrinterColumns": List(Obj({"name": "string", "jsonPath": "string"}, open=True)),
                        },
                        open=True,
                    )
                ),
            },
            open=True,
        ),
        "status": Obj(open=True),
    }
)
WORKLOAD = Obj(
    {
        "spec": Obj(
            {
                "selector": SELECTOR,
                "replicas": "integer",
                "template": Obj({"metadata": METADATA, "spec": POD_SPEC}),
            },
            open=True,
        ),
        "status": Obj(open=True),
    }
)
