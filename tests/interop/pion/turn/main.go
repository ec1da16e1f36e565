// A TURN client of pion, driven by lines of JSON.
//
// It writes   {"allocated": {"relayed", "mapped"}} or {"failed": REASON}, {"received": HEX, "from": PLACE},
//
//	{"permitted": true}, {"ended": true} as its last line
//
// and reads   {"permit": PLACE}, {"send": HEX, "to": PLACE}, {"close": true}
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"flag"
	"net"
	"os"
	"time"

	"github.com/pion/turn/v5"

	"polynya.test/pion/lines"
)

func dial(transport, server, certificate string) (net.PacketConn, error) {
	switch transport {
	case "udp":
		host, _, err := net.SplitHostPort(server)
		if err != nil {
			return nil, err
		}
		return net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	case "tcp":
		conn, err := net.Dial("tcp", server)
		if err != nil {
			return nil, err
		}
		return turn.NewSTUNConn(conn), nil
	default:
		pem, err := os.ReadFile(certificate)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		conn, err := tls.Dial("tcp", server, &tls.Config{RootCAs: roots, ServerName: "localhost"})
		if err != nil {
			return nil, err
		}
		return turn.NewSTUNConn(conn), nil
	}
}

func main() {
	server := flag.String("server", "", "HOST:PORT")
	transport := flag.String("transport", "udp", "udp, tcp or tls")
	user := flag.String("user", "", "user name")
	password := flag.String("password", "", "password")
	secret := flag.String("secret", "", "make time-limited credentials with this secret")
	certificate := flag.String("certificate", "", "PEM file that a TLS server is checked against")
	family := flag.Int("family", 4, "of the relayed address")
	permissions := flag.Duration("permissions", 0, "between two refreshes of permissions")
	flag.Parse()

	if *secret != "" {
		name, made, err := turn.GenerateLongTermTURNRESTCredentials(*secret, *user, time.Minute)
		if err != nil {
			lines.Fail(err)
		}
		*user, *password = name, made
	}
	conn, err := dial(*transport, *server, *certificate)
	if err != nil {
		lines.Fail(err)
	}
	requested := turn.RequestedAddressFamilyIPv4
	if *family == 6 {
		requested = turn.RequestedAddressFamilyIPv6
	}
	client, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr:            *server,
		TURNServerAddr:            *server,
		Conn:                      conn,
		Username:                  *user,
		Password:                  *password,
		RequestedAddressFamily:    requested,
		PermissionRefreshInterval: *permissions,
	})
	if err != nil {
		lines.Fail(err)
	}
	if err = client.Listen(); err != nil {
		lines.Fail(err)
	}
	mapped, err := client.SendBindingRequest()
	if err != nil {
		lines.Fail(err)
	}
	relay, err := client.Allocate()
	if err != nil {
		lines.Fail(err)
	}
	lines.Say(lines.Line{"allocated": lines.Line{
		"relayed": lines.Place(relay.LocalAddr()), "mapped": lines.Place(mapped),
	}})

	go func() {
		buffer := make([]byte, 1<<16)
		for {
			size, from, err := relay.ReadFrom(buffer)
			if err != nil {
				return
			}
			lines.Say(lines.Line{"received": hex.EncodeToString(buffer[:size]), "from": lines.Place(from)})
		}
	}()
	for command := range lines.Commands() {
		switch {
		case command["permit"] != nil:
			if err = client.CreatePermission(lines.Address(command["permit"])); err != nil {
				lines.Say(lines.Line{"failed": err.Error()})
			} else {
				lines.Say(lines.Line{"permitted": true})
			}
		case command["send"] != nil:
			data, err := hex.DecodeString(command["send"].(string))
			if err == nil {
				_, err = relay.WriteTo(data, lines.Address(command["to"]))
			}
			if err != nil {
				lines.Say(lines.Line{"failed": err.Error()})
			}
		case command["close"] != nil:
			if err = relay.Close(); err != nil {
				lines.Fail(err)
			}
			client.Close()
			_ = conn.Close()
			lines.Say(lines.Line{"ended": true})
			return
		}
	}
}
