// A stand-in for cnitool, for machines that reach Debian's registry but not Go's: Debian ships libcni without the tool.
// Same arguments and environment: cnitool add|check|del NETWORK NETNS, with CNI_PATH, NETCONFPATH, CAP_ARGS, CNI_IFNAME.
package main

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
)

func run(verb, network, netns string) error {
	list, err := libcni.LoadConfList(os.Getenv("NETCONFPATH"), network)
	if err != nil {
		return err
	}
	netns, err = filepath.Abs(netns)
	if err != nil {
		return err
	}
	capabilities := map[string]interface{}{}
	if text := os.Getenv("CAP_ARGS"); text != "" {
		if err := json.Unmarshal([]byte(text), &capabilities); err != nil {
			return fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	name := os.Getenv("CNI_IFNAME")
	if name == "" {
		name = "eth0"
	}
	digest := sha512.Sum512([]byte(netns))
	attachment := &libcni.RuntimeConf{
		ContainerID:    fmt.Sprintf("cnitool-%x", digest[:10]),
		NetNS:          netns,
		IfName:         name,
		CapabilityArgs: capabilities,
	}
	cni := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(context.TODO(), list, attachment)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return cni.CheckNetworkList(context.TODO(), list, attachment)
	case "del":
		return cni.DelNetworkList(context.TODO(), list, attachment)
	}
	return fmt.Errorf("unknown command %q", verb)
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: cnitool add|check|del NETWORK NETNS")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
