// An ICE agent of pion, driven by lines of JSON; tests/interop/dialogue.py describes them.
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"

	"polynya.test/pion/lines"
)

func options(family int, lite bool, relay []string, tcp bool) ([]ice.AgentOption, error) {
	network := ice.NetworkTypeUDP4
	if family == 6 {
		network = ice.NetworkTypeUDP6
	}
	chosen := []ice.AgentOption{
		ice.WithNetworkTypes([]ice.NetworkType{network}),
		ice.WithMulticastDNSMode(ice.MulticastDNSModeDisabled),
		ice.WithICELite(lite),
	}
	if lite {
		chosen = append(chosen, ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeHost}))
	}
	if len(relay) == 4 {
		transport, over := "udp", ice.NetworkTypeUDP4
		if tcp {
			transport, over = "tcp", ice.NetworkTypeTCP4
		}
		server, err := stun.ParseURI("turn:" + net.JoinHostPort(relay[0], relay[1]) + "?transport=" + transport)
		if err != nil {
			return nil, err
		}
		server.Username, server.Password = relay[2], relay[3]
		chosen = append(chosen,
			ice.WithUrls([]*stun.URI{server}),
			ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeRelay}),
			ice.WithTURNTransportProtocols([]ice.NetworkType{over}),
			ice.WithIncludeLoopback(),
			ice.WithRelayAcceptanceMinWait(0),
		)
	}
	return chosen, nil
}

type peer struct {
	agent       *ice.Agent
	controlling bool
	conn        chan *ice.Conn
}

// describe signals the credentials and starts to gather; candidates are signaled as they are found.
func (p *peer) describe(lite bool) {
	ufrag, password, err := p.agent.GetLocalUserCredentials()
	if err != nil {
		lines.Fail(err)
	}
	lines.Say(lines.Line{"description": lines.Line{
		"ufrag": ufrag, "password": password, "options": []string{"trickle"}, "lite": lite,
	}})
	if err := p.agent.GatherCandidates(); err != nil {
		lines.Fail(err)
	}
}

// restart restarts ICE with new credentials (RFC 8445, section 9).
func (p *peer) restart(lite bool) {
	if err := p.agent.Restart("", ""); err != nil {
		lines.Fail(err)
	}
	p.describe(lite)
}

func (p *peer) add(text any) {
	candidate, ok := text.(string)
	if !ok {
		return // null: no more come
	}
	parsed, err := ice.UnmarshalCandidate(candidate)
	if err == nil {
		err = p.agent.AddRemoteCandidate(parsed)
	}
	if err != nil {
		lines.Say(lines.Line{"failed": err.Error()})
	}
}

// use connects, and reports received data until the connection ends.
func (p *peer) use(ufrag, password string) {
	connect := p.agent.Accept
	if p.controlling {
		connect = p.agent.Dial
	}
	limit, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := connect(limit, ufrag, password)
	if err != nil {
		lines.Say(lines.Line{"failed": err.Error()})
		return
	}
	pair, err := p.agent.GetSelectedCandidatePair()
	if err != nil || pair == nil {
		lines.Say(lines.Line{"failed": "connected without a pair"})
		return
	}
	lines.Say(lines.Line{"connected": lines.Line{
		"local":   []any{pair.Local.Address(), pair.Local.Port()},
		"remote":  []any{pair.Remote.Address(), pair.Remote.Port()},
		"relayed": pair.Local.Type() == ice.CandidateTypeRelay || pair.Remote.Type() == ice.CandidateTypeRelay,
	}})
	p.conn <- conn
	buffer := make([]byte, 1<<16)
	for {
		size, err := conn.Read(buffer)
		if err != nil {
			lines.Say(lines.Line{"closed": err.Error()})
			return
		}
		lines.Say(lines.Line{"received": hex.EncodeToString(buffer[:size])})
	}
}

func main() {
	controlling := flag.Bool("controlling", false, "take this role")
	family := flag.Int("family", 4, "of the candidates")
	lite := flag.Bool("lite", false, "be an ICE lite agent")
	relay := flag.String("relay", "", "HOST,PORT,USER,PASSWORD: by this server only")
	tcp := flag.Bool("tcp", false, "go to it over TCP")
	flag.Parse()

	var server []string
	if *relay != "" {
		server = strings.Split(*relay, ",")
	}
	chosen, err := options(*family, *lite, server, *tcp)
	if err != nil {
		lines.Fail(err)
	}
	agent, err := ice.NewAgentWithOptions(chosen...)
	if err != nil {
		lines.Fail(err)
	}
	p := &peer{agent: agent, controlling: *controlling, conn: make(chan *ice.Conn, 1)}
	err = agent.OnCandidate(func(candidate ice.Candidate) {
		if candidate == nil {
			lines.Say(lines.Line{"candidate": nil})
		} else {
			lines.Say(lines.Line{"candidate": candidate.Marshal()})
		}
	})
	if err != nil {
		lines.Fail(err)
	}
	err = agent.OnSelectedCandidatePairChange(func(local, remote ice.Candidate) {
		lines.Say(lines.Line{"nominated": lines.Line{
			"local": []any{local.Address(), local.Port()}, "remote": []any{remote.Address(), remote.Port()},
		}})
	})
	if err != nil {
		lines.Fail(err)
	}
	p.describe(*lite)

	var conn *ice.Conn
	started, restarting := false, false
	for command := range lines.Commands() {
		switch {
		case command["description"] != nil:
			description := command["description"].(map[string]any)
			ufrag, password := description["ufrag"].(string), description["password"].(string)
			if candidates, ok := description["candidates"].([]any); ok {
				for _, each := range candidates {
					p.add(each)
				}
			}
			if started { // a restart of the other side, or its answer to a restart of this agent
				if !restarting {
					p.restart(*lite)
				}
				restarting = false
				if err := agent.SetRemoteCredentials(ufrag, password); err != nil {
					lines.Fail(err)
				}
				continue
			}
			started = true
			if remoteLite, ok := description["lite"].(bool); ok {
				if err := agent.SetRemoteICELite(remoteLite); err != nil {
					lines.Fail(err)
				}
			}
			go p.use(ufrag, password)
		case command["send"] != nil:
			if conn == nil {
				conn = <-p.conn
			}
			data, err := hex.DecodeString(command["send"].(string))
			if err == nil {
				_, err = conn.Write(data)
			}
			if err != nil {
				lines.Say(lines.Line{"failed": err.Error()})
			}
		case command["restart"] != nil:
			p.restart(*lite)
			restarting = true
		case command["close"] != nil:
			if err := agent.Close(); err != nil {
				lines.Fail(err)
			}
			lines.Say(lines.Line{"ended": true})
			return
		default:
			if value, ok := command["candidate"]; ok {
				p.add(value)
			} else {
				lines.Say(lines.Line{"failed": "not a command: " + strconv.Itoa(len(command))})
			}
		}
	}
}
