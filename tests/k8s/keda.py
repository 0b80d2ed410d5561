"""The schema of KEDA's `ScaledObject` (keda.sh/v1alpha1, KEDA 2): fields, types, what must be.

Its own comes with KEDA's releases and is in no package; of a trigger it knows no fields.

After https://keda.sh/docs/latest/reference/scaledobject-spec/ and
https://keda.sh/docs/latest/scalers/apache-kafka/.
"""

from typing import Any

Schema = dict[str, Any]

WHOLE: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
FLAG_AS_TEXT: Schema = {"enum": ["true", "false"]}
WHOLE_AS_TEXT: Schema = {"type": "string", "pattern": "^[0-9]+$"}


def exactly(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object that has these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


KAFKA_TRIGGER = exactly(
    ("topic",),
    bootstrapServers=TEXT,
    bootstrapServersFromEnv=TEXT,
    consumerGroup=TEXT,
    consumerGroupFromEnv=TEXT,
    topic=TEXT,
    lagThreshold=WHOLE_AS_TEXT,
    activationLagThreshold=WHOLE_AS_TEXT,
    offsetResetPolicy={"enum": ["latest", "earliest"]},
    allowIdleConsumers=FLAG_AS_TEXT,
    scaleToZeroOnInvalidOffset=FLAG_AS_TEXT,
    excludePersistentLag=FLAG_AS_TEXT,
    limitToPartitionsWithLag=FLAG_AS_TEXT,
    ensureEvenDistributionOfPartitions=FLAG_AS_TEXT,
    partitionLimitation=TEXT,
    version=TEXT,
    sasl={"enum": ["none", "plaintext", "scram_sha256", "scram_sha512", "gssapi", "oauthbearer"]},
    tls={"enum": ["enable", "disable"]},
    unsafeSsl=FLAG_AS_TEXT,
)

SCALED_OBJECT = exactly(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata={"type": "object", "required": ["name"]},
    spec=exactly(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=exactly(
            ("name",), apiVersion=TEXT, kind=TEXT, name=TEXT, envSourceContainerName=TEXT
        ),
        pollingInterval=WHOLE,
        cooldownPeriod=WHOLE,
        initialCooldownPeriod=WHOLE,
        idleReplicaCount=WHOLE,
        minReplicaCount=WHOLE,
        maxReplicaCount=WHOLE,
        fallback=exactly(
            ("failureThreshold", "replicas"),
            failureThreshold=WHOLE,
            replicas=WHOLE,
            behavior={
                "enum": [
                    "static",
                    "currentReplicas",
                    "currentReplicasIfHigher",
                    "currentReplicasIfLower",
                ]
            },
        ),
        advanced=exactly(
            restoreToOriginalReplicaCount=FLAG,
            # The behavior is Kubernetes' own, see the test.
            horizontalPodAutoscalerConfig=exactly(name=TEXT, behavior={"type": "object"}),
            scalingModifiers={"type": "object"},
        ),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": exactly(
                ("type", "metadata"),
                type={"const": "kafka"},
                name=TEXT,
                metadata=KAFKA_TRIGGER,
                metricType={"enum": ["AverageValue", "Value"]},
                useCachedMetrics=FLAG,
                authenticationRef=exactly(
                    ("name",),
                    name=TEXT,
                    kind={"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]},
                ),
            ),
        },
    ),
)
