// Reads manifests as the API server does with fieldValidation=Strict: unknown keys and values of the wrong type are errors.
// Prints each object with its keys in order, so that two ways of writing it can be compared.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	scheme := runtime.NewScheme()
	if err := appsv1.AddToScheme(scheme); err != nil {
		log.Fatal(err)
	}
	options := serializer.SerializerOptions{Yaml: true, Strict: true}
	strict := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme, scheme, options)
	documents := yaml.NewDocumentDecoder(io.NopCloser(bufferOf(os.Stdin)))
	for {
		document := make([]byte, 1<<20)
		length, err := documents.Read(document)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		object, kind, err := strict.Decode(document[:length], nil, nil)
		if err != nil {
			log.Fatal(err)
		}
		check(object)
		normal, err := json.MarshalIndent(object, "", " ")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %s\n", kind.Kind, normal)
	}
}

func bufferOf(reader io.Reader) io.Reader {
	content, err := io.ReadAll(reader)
	if err != nil {
		log.Fatal(err)
	}
	return bytes.NewReader(content)
}

// check verifies what types alone do not: each container's mounts have volumes, and the selector matches the pods.
func check(object runtime.Object) {
	set, ok := object.(*appsv1.DaemonSet)
	if !ok {
		log.Fatalf("a %T was not expected", object)
	}
	pod := set.Spec.Template
	volumes := map[string]bool{}
	for _, volume := range pod.Spec.Volumes {
		volumes[volume.Name] = true
	}
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		for _, mount := range container.VolumeMounts {
			if !volumes[mount.Name] {
				log.Fatalf("container %s mounts %s, which is no volume", container.Name, mount.Name)
			}
		}
	}
	for key, value := range set.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			log.Fatalf("the selector wants %s=%s, which the pods have not", key, value)
		}
	}
	if len(set.Spec.Selector.MatchLabels) == 0 {
		log.Fatal("the selector is empty")
	}
}
