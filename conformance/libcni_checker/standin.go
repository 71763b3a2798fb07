package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// The two plugins that stand before and behind the one that is checked. This program is both, under their names.
const (
	before = "before" // prints the result that its configuration holds
	behind = "behind" // writes down what it is given, and passes prevResult on
)

type standInConfiguration struct {
	Result     json.RawMessage `json:"result"`
	WriteTo    string          `json:"writeTo"`
	PrevResult json.RawMessage `json:"prevResult"`
}

func standIn(name, command string) error {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if command == "VERSION" {
		_, err = fmt.Println(`{"cniVersion": "1.1.0", "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}`)
		return err
	}
	configuration := standInConfiguration{}
	if err := json.Unmarshal(input, &configuration); err != nil {
		return err
	}
	if name == behind && configuration.WriteTo != "" {
		if err := os.WriteFile(configuration.WriteTo+"."+command, input, 0o600); err != nil {
			return err
		}
	}
	if command != "ADD" {
		return nil
	}
	answer := configuration.Result
	if name == behind {
		answer = configuration.PrevResult
	}
	_, err = os.Stdout.Write(answer)
	return err
}
