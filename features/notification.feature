Feature: Notification
  Whoever has registered is sent a welcome, apart from the registration itself.

  Rule: A new user is sent one welcome

    Scenario: Alice is welcomed
      When Alice registers as "alice@example.com"
      Then a welcome is sent to "alice@example.com", and to nobody else

    Scenario: The welcome goes to the address as it was typed
      When Alice registers as "Alice@BÜCHER.example"
      Then a welcome is sent to "Alice@BÜCHER.example", and to nobody else

    Scenario: Everybody is welcomed
      When 20 people register at once
      Then everybody who registered is sent one welcome, and nobody else is sent any

    # Only a mail that is really sent has words.
    @use.with_level=http @mail_server
    Scenario: The welcome tells which address was registered, as it was typed
      When Alice registers as "Alice@BÜCHER.example"
      Then a welcome is sent to "Alice@xn--bcher-kva.example", and to nobody else
      And it says that "Alice@BÜCHER.example" has been registered
      And nobody has seen the password of Alice, nor what is stored of it

    # Only time that is a fake can be made to pass.
    @use.with_level=use_cases
    Scenario: No second welcome comes later
      Given Alice has registered as "alice@example.com"
      When 48 hours pass
      Then a welcome is sent to "alice@example.com", and to nobody else

  Rule: Whoever is not registered is sent nothing

    Scenario Outline: Bob is refused, aged <age> and with the password "<password>"
      When Bob, aged <age>, registers as "bob@example.com" and with the password "<password>"
      Then nobody is sent a welcome

      Examples:
        | age | password             |
        | 17  | down the rabbit hole |
        | 18  | rabbits              |

    Scenario: Bob tries Alice's address
      Given Alice has registered as "alice@example.com"
      When Bob registers as "ALICE@example.com"
      Then a welcome is sent to "alice@example.com", and to nobody else

    Scenario: Many people try one mailbox at the same time
      When 20 people register as "alice@example.com" at once, each in another spelling
      Then everybody who registered is sent one welcome, and nobody else is sent any

  Rule: Nobody is flooded with mails

    # Only time that is a fake can be made to pass.
    @use.with_level=use_cases
    Scenario: Somebody registers Bob's mailbox again and again
      Given "bob@example.com" has been registered 12 times, with another tag each time
      When 24 hours pass
      Then Bob has found 10 welcomes in the mailbox "bob@example.com"
      When 12 hours pass
      Then everybody who registered is sent one welcome, and nobody else is sent any

    Scenario: Bob's mail is not held up by a flood to Alice
      Given "alice@example.com" has been registered 12 times, with another tag each time
      When Bob registers as "bob@example.com"
      Then he is registered
      And he has found 1 welcomes in the mailbox "bob@example.com"

  @mail_server
  Rule: Nobody waits for the mail server

    Scenario: The mail server does not answer when Alice registers
      Given mail to "alice@example.com" gets no answer
      When Alice registers as "alice@example.com"
      Then she is registered
      And nobody is sent a welcome

    Scenario Outline: Bob's mail is not held up by Alice's, which <meets with trouble>
      Given mail to "alice@example.com" <meets with trouble>
      And Alice has registered as "alice@example.com"
      When Bob registers as "bob@example.com"
      Then he is registered
      And a welcome is sent to "bob@example.com", and to nobody else

      Examples:
        | meets with trouble      |
        | cannot be sent just now |
        | can never be delivered  |
        | gets no answer          |

  @mail_server
  Rule: A mail that cannot be sent just now is tried again, for more than a day

    @not.with_storage=memory
    Scenario: Alice's mail arrives although the mail server was down when she registered
      Given the mail server is down
      When Alice registers as "alice@example.com"
      Then she is registered
      And nobody is sent a welcome
      And the operator is told that the mail to "alice@example.com" waits to be tried again
      When the mail server is up again
      Then a welcome is sent to "alice@example.com" in the end, and to nobody else
      And the operator is told that no mail is left over

    @not.with_storage=memory
    Scenario: Alice's mailbox is busy
      Given mail to "alice@example.com" cannot be sent just now
      When Alice registers as "alice@example.com"
      Then she is registered
      And nobody is sent a welcome
      And the operator is told that the mail to "alice@example.com" waits to be tried again

    @use.with_level=use_cases
    Scenario: Alice's mail arrives although the mail server was down for a day
      Given the mail server is down
      And Alice has registered as "alice@example.com"
      When 24 hours pass
      And the mail server is up again
      Then a welcome is sent to "alice@example.com" in the end, and to nobody else

    @use.with_level=use_cases
    Scenario: Alice's mail arrives although it got no answer for an hour
      Given mail to "alice@example.com" gets no answer
      And Alice has registered as "alice@example.com"
      When 1 hours pass
      And mail to "alice@example.com" can be delivered again
      Then a welcome is sent to "alice@example.com" in the end, and to nobody else

    @use.with_level=use_cases
    Scenario: The mail server is down for a day, and is not asked more and more
      Given the mail server is down
      And Alice has registered as "alice@example.com"
      When 24 hours pass
      Then the mail to "alice@example.com" was tried after waits that grow from seconds to an hour
      And the operator is told that the mail to "alice@example.com" waits to be tried again

    @use.with_level=use_cases
    Scenario: The mail server is down for days
      Given the mail server is down
      And Alice has registered as "alice@example.com"
      When 96 hours pass
      Then the operator is told that the mail to "alice@example.com" is dead-lettered because nobody answers at the mail server

  @mail_server
  Rule: A mail that can never be delivered is dead-lettered, and the operator decides

    @not.with_storage=memory
    Scenario: The operator is told why
      Given mail to "alice@example.com" can never be delivered
      When Alice registers as "alice@example.com"
      Then she is registered
      And nobody is sent a welcome
      And the operator is told that the mail to "alice@example.com" is dead-lettered because the mail server refuses the recipient

    # The service notices when it next has something to do.
    @not.with_storage=memory
    Scenario: The operator has it sent again
      Given mail to "alice@example.com" can never be delivered
      And Alice has registered as "alice@example.com"
      And the mail to "alice@example.com" was dead-lettered
      When mail to "alice@example.com" can be delivered again
      And the operator has the mail to "alice@example.com" sent again
      And Bob registers
      Then everybody who registered is sent one welcome, and nobody else is sent any

    # It also notices by itself, within a time that is too long to wait for it.
    @use.with_level=use_cases
    Scenario: The operator has it sent again, and nobody registers
      Given mail to "alice@example.com" can never be delivered
      And Alice has registered as "alice@example.com"
      And the mail to "alice@example.com" was dead-lettered
      When mail to "alice@example.com" can be delivered again
      And the operator has the mail to "alice@example.com" sent again
      And a minute passes
      Then a welcome is sent to "alice@example.com", and to nobody else

    @use.with_level=use_cases
    Scenario: Nobody decides
      Given mail to "alice@example.com" can never be delivered
      And Alice has registered as "alice@example.com"
      And the mail to "alice@example.com" was dead-lettered
      When mail to "alice@example.com" can be delivered again
      And 24 hours pass
      Then nobody is sent a welcome
