// Package lines exchanges JSON objects, one a line, with the test that runs a peer (tests/interop/dialogue.py).
package lines

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
)

// Line is one object.
type Line map[string]any

var mutex sync.Mutex

// Say prints one line.
func Say(line Line) {
	data, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	mutex.Lock()
	defer mutex.Unlock()
	fmt.Println(string(data))
}

// Commands returns a channel of the lines that the test writes; it is closed at their end.
func Commands() <-chan Line {
	commands := make(chan Line)
	go func() {
		defer close(commands)
		scanner := bufio.NewScanner(os.Stdin)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			line := Line{}
			if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
				Say(Line{"failed": "a command is not JSON: " + err.Error()})
				os.Exit(1)
			}
			commands <- line
		}
	}()
	return commands
}

// Place is an address as the test writes it: host and port.
func Place(address net.Addr) []any {
	host, text, err := net.SplitHostPort(address.String())
	if err != nil {
		return []any{address.String(), 0}
	}
	port, _ := strconv.Atoi(text)
	return []any{host, port}
}

// Address is the reverse of Place.
func Address(place any) *net.UDPAddr {
	pair, ok := place.([]any)
	if !ok || len(pair) != 2 {
		return nil
	}
	host, _ := pair[0].(string)
	port, _ := pair[1].(float64)
	return &net.UDPAddr{IP: net.ParseIP(host), Port: int(port)}
}

// Fail reports an error and ends the process.
func Fail(err error) {
	Say(Line{"failed": err.Error()})
	os.Exit(1)
}
