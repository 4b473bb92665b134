Feature: Listing
  Whoever looks after the service can see who is registered.

  Scenario: Nobody has registered yet
    When somebody lists everybody
    Then they are shown nobody
    And this is the last page

  Rule: People are listed in the order in which they registered

    Background:
      Given Alice, Bob and Carol have registered, one after the other

    Scenario: The oldest come first
      When somebody lists everybody
      Then they are shown Alice, Bob and Carol

    Scenario: The newest come first on demand
      When somebody lists everybody, the newest first
      Then they are shown Carol, Bob and Alice

    Scenario: Whoever was refused is not listed
      When Dave registers at the age of 17
      And somebody lists everybody
      Then they are shown Alice, Bob and Carol

  Rule: A long list comes in pages

    Scenario: A page has as many people as were asked for
      Given Alice, Bob and Carol have registered, one after the other
      When somebody lists people 2 at a time
      Then they are shown Alice and Bob

    Scenario: The next page goes on where the last one ended
      Given Alice, Bob and Carol have registered, one after the other
      When somebody lists people 2 at a time
      And they turn the page
      Then they are shown Carol
      And this is the last page

    Scenario: A last page may be full
      Given Alice, Bob, Carol and Dave have registered, one after the other
      When somebody lists people 2 at a time
      And they turn the page
      Then they are shown Carol and Dave
      And this is the last page

    Scenario: Pages keep to the order in which they were asked for
      Given Alice, Bob, Carol, Dave and Erin have registered, one after the other
      When somebody lists people 2 at a time, the newest first
      And they turn the pages to the end
      Then they have been shown Erin, Dave, Carol, Bob and Alice

    # How many fit on a page by default is decided where requests come in, not by the use case.
    @use.with_level=http
    Scenario: A page has fifty people if nobody asks for more or fewer
      When 51 people register at once
      And somebody lists everybody
      Then they are shown 50 people

  Rule: Whoever registers while somebody pages makes nobody come twice, and gets lost neither

    Scenario: Dave registers while somebody reads on from the oldest
      Given Alice, Bob and Carol have registered, one after the other
      When somebody lists people 2 at a time
      And Dave registers
      And they turn the pages to the end
      Then they have been shown Alice, Bob, Carol and Dave

    Scenario: Erin registers while somebody reads on from the newest
      Given Alice, Bob, Carol and Dave have registered, one after the other
      When somebody lists people 2 at a time, the newest first
      And Erin registers
      And they turn the pages to the end
      Then they have been shown Dave, Carol, Bob and Alice

    Scenario: People who register all at once are all listed
      When 20 people register at once
      And somebody lists people 3 at a time
      And they turn the pages to the end
      Then they have been shown everybody exactly once

  Rule: One person can be found among all

    Background:
      Given Alice has registered as "alice@bücher.example"
      And Bob has registered as "bob@example.com"

    Scenario Outline: Alice is found by her mailbox as <spelling>
      When somebody looks for "<spelling>"
      Then they are shown Alice

      Examples:
        | spelling                    |
        | alice@bücher.example        |
        | ALICE@BÜCHER.example        |
        | alice@xn--bcher-kva.example |

    Scenario: Alice is found by her mailbox with accents typed apart
      When somebody looks for "alice@bücher.example" with accents typed apart
      Then they are shown Alice

    Scenario: Nobody has the mailbox
      When somebody looks for "carol@example.com"
      Then they are shown nobody

    Scenario: Bob is looked up
      When somebody looks Bob up
      Then they are shown Bob

    Scenario: Somebody unknown is looked up
      When somebody looks up a person who never registered
      Then they are shown nobody
